"""Sparrow's passes over Relax, one a file; ``deploy/pipeline.py`` lists them in order."""
