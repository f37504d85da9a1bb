//! mosn
