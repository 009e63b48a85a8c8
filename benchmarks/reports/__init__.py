"""Self-contained HTML pages: ``demo`` shows one run of the demo, ``results`` any mix of result documents."""
