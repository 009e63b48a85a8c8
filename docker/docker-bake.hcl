# docker buildx bake -f docker/docker-bake.hcl             for this machine, into its engine
# docker buildx bake -f docker/docker-bake.hcl release     for amd64 and arm64 hosts

variable "TAG" {
  default = "sparrow"
}

# Address of PyTorch's index for CPUs, needed for amd64.
variable "PYTORCH_INDEX" {
  default = ""
}

group "default" {
  targets = ["sparrow"]
}

target "sparrow" {
  context    = "."
  dockerfile = "docker/Dockerfile"
  tags       = [TAG]
  args       = { PYTORCH_INDEX = PYTORCH_INDEX }
}

target "release" {
  inherits  = ["sparrow"]
  platforms = ["linux/amd64", "linux/arm64"]
}
