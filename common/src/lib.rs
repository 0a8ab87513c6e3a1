//! What the Underpass tools share.
