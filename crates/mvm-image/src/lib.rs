//! From a flake to an immutable image; kernels; garbage collection
