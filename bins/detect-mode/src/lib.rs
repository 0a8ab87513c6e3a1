//! What detect-mode decides, apart from where it finds it.

pub mod observe;
pub mod plan;
pub mod routing;
