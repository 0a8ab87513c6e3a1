//! What set-routes decides, apart from where it finds it.

pub mod plan;
