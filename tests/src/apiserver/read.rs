//! GET of one object and of many.

use serde_json::{Value, json};

use super::options::{Continue, Options, Version};
use super::refusal::Refusal;
use super::shape::Shape;
use super::store::Store;
use super::target::Target;

/// One object, as it is now.
pub(super) fn get(
    store: &Store,
    target: &Target,
    version: Option<u64>,
    shape: Shape,
) -> Result<Value, Refusal> {
    reached(store, version.unwrap_or_default())?;
    let object = store.existing(&target.key()?)?;
    Ok(shape.object(&object).into_owned())
}

/// A page of the objects of a kind, in the order of their names.
pub(super) fn list(
    store: &Store,
    target: &Target,
    options: &Options,
    shape: Shape,
) -> Result<Value, Refusal> {
    let version = version(store, options)?;
    let standing = store.at(target.kind, version).map_err(|refusal| match options.continued {
        Some(_) => Refusal::expired(
            "the provided continue parameter is too old to display a consistent list; start a new \
             list without it",
        ),
        None => refusal,
    })?;
    // A list from the server's cache comes whole.
    let limit = match (options.version, &options.continued) {
        (Version::Any, None) => None,
        _ => options.limit,
    };
    let mut selected = standing.into_iter().filter(|(key, object)| {
        let last = options.continued.as_ref();
        let after = |last: &Continue| (&last.namespace, &last.name) < (&key.namespace, &key.name);
        target.holds(key) && last.is_none_or(after) && options.selector.matches(object)
    });
    let page: Vec<_> = selected.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
    let remaining = selected.count();

    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let (Some((key, _)), 1..) = (page.last(), remaining) {
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        metadata["continue"] = json!(Continue { version, namespace, name }.to_token());
        // With a selector a real server does not count what it has not read.
        if options.selector.is_empty() {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    let items: Vec<_> =
        page.into_iter().map(|(_, object)| shape.item(target.kind, object)).collect();
    let (name, api_version) = shape.names(target.kind);
    Ok(json!({
        "kind": format!("{name}List"), "apiVersion": api_version,
        "metadata": metadata, "items": items,
    }))
}

/// The version to list at.
fn version(store: &Store, options: &Options) -> Result<u64, Refusal> {
    if let Some(last) = &options.continued {
        return Ok(last.version);
    }
    match options.version {
        Version::Newest | Version::Any => Ok(store.version()),
        Version::NotOlderThan(version) => reached(store, version).map(|()| store.version()),
        Version::Exact(version) => reached(store, version).map(|()| version),
    }
}

fn reached(store: &Store, version: u64) -> Result<(), Refusal> {
    if version > store.version() {
        return Err(Refusal::version_ahead(version, store.version()));
    }
    Ok(())
}
