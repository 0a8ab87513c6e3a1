//! What the Kubernetes tools share. A crate of its own, so that no CNI ADD is linked with it.
//!
//! [`Access`] is the way to the API server; a [`Selection`] says which objects of it are meant; [`follow()`] watches them
//! and [`list`] reads them once, each object cut down to what is of use as it arrives; [`Health`] says whether what is known
//! is current, for a person and as metrics.

mod client;
mod follow;
mod health;
mod list;
mod name;
mod reach;
mod refusal;
mod selection;
mod socket_path;

pub use client::Access;
pub use follow::{Event, backoff, follow, follow_objects};
pub use health::Health;
pub use k8s_openapi;
pub use kube;
pub use list::list;
pub use name::Name;
pub use reach::{Reach, reach};
pub use refusal::{causes, explain, status};
pub use selection::Selection;
pub use socket_path::{SOCKET_PATH, socket_path};
