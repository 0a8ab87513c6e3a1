//! What set-rules decides, apart from where it finds it.

pub mod plan;
