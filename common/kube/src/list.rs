//! Objects as they are now, read once.

use std::fmt::Debug;

use kube::{Api, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{refusal::status, selection::Selection};

/// So many objects are asked for at a time, as client-go does it.
const PAGE: u32 = 500;

/// Reads the objects once, in pages, each cut down by `keep` as its page arrives.
///
/// # Errors
/// What the API server refuses ([`crate::explain`]), and what the way to it does.
pub async fn list<K, T>(api: &Api<K>, selection: &Selection, mut keep: impl FnMut(K) -> T) -> kube::Result<Vec<T>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let found = pages(api, selection, &mut keep).await;
    let refusal = found.as_ref().err().and_then(status).filter(|status| status.code == 400);
    match refusal.and_then(|status| selection.without_fields(&status.message)) {
        Some(wider) => pages(api, &wider, &mut keep).await,
        None => found,
    }
}

async fn pages<K, T>(api: &Api<K>, selection: &Selection, mut keep: impl FnMut(K) -> T) -> kube::Result<Vec<T>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut parameters = ListParams {
        label_selector: selection.label_selector(),
        field_selector: selection.field_selector(),
        limit: Some(PAGE),
        ..ListParams::default()
    };
    let mut kept = vec![];
    loop {
        let page = api.list(&parameters).await?;
        kept.extend(page.items.into_iter().map(&mut keep));
        parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if parameters.continue_token.is_none() {
            return Ok(kept);
        }
    }
}
