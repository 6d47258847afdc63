//! The data: a JSON document with a limit on its size, read as a whole or by path.

use super::token::{Authority, TokenError};
use crate::virtio::net::{MmdsConfig, MmdsVersion};
use serde_json::{Map, Value};

/// Most bytes of the document as compact JSON, unless something else is asked for.
pub const DEFAULT_LIMIT: usize = 51_200;

/// A whole document, or a change of it.
pub type Metadata = Value;

/// Why not: Firecracker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Larger than the limit.
    #[error("The MMDS patch request doesn't fit.")]
    TooLarge,
    /// A change of nothing.
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
    /// Nothing at that path.
    #[error("The MMDS resource does not exist.")]
    NotFound,
    /// Neither text nor a list of names.
    #[error("Cannot retrieve value. The value has an unsupported type.")]
    Unsupported,
}

/// How the guest gets a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// As JSON.
    Json,
    /// As EC2 does: names of members one a line, text without quotes.
    Imds,
}

/// The data, and how it is given out.
pub struct Store {
    data: Option<Value>,
    limit: usize,
    version: MmdsVersion,
    always_imds: bool,
    authority: Authority,
}

impl Store {
    pub(super) fn new(instance: &str) -> Self {
        Store {
            data: None,
            limit: DEFAULT_LIMIT,
            version: MmdsVersion::default(),
            always_imds: false,
            authority: Authority::new(instance),
        }
    }

    /// Changes the limit, in bytes; what is there stays.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// How it is given out from now on.
    pub fn configure(&mut self, config: &MmdsConfig) {
        self.version = config.version;
        self.always_imds = config.imds_compat;
    }

    /// All of it.
    pub fn get(&self) -> Option<&Metadata> {
        self.data.as_ref()
    }

    /// Replaces all of it.
    ///
    /// # Errors
    /// Larger than the limit; nothing is changed.
    pub fn put(&mut self, data: Metadata) -> Result<(), MetadataError> {
        if data.to_string().len() > self.limit {
            return Err(MetadataError::TooLarge);
        }
        self.data = Some(data);
        Ok(())
    }

    /// Changes it by a JSON merge patch (RFC 7396).
    ///
    /// # Errors
    /// Nothing was put before, or the result is larger than the limit; nothing is changed.
    pub fn patch(&mut self, patch: Metadata) -> Result<(), MetadataError> {
        let mut data = self.data.clone().ok_or(MetadataError::NotInitialized)?;
        merge(&mut data, patch);
        self.put(data)
    }

    pub(super) fn version(&self) -> MmdsVersion {
        self.version
    }

    pub(super) fn always_imds(&self) -> bool {
        self.always_imds
    }

    pub(super) fn new_token(&self, seconds: u32, now_ns: u64) -> Result<String, TokenError> {
        self.authority.issue(seconds, now_ns)
    }

    pub(super) fn is_valid(&self, token: &str, now_ns: u64) -> bool {
        self.authority.is_valid(token, now_ns)
    }

    /// What is at `path`, a JSON pointer that may end with a slash.
    pub(super) fn value(&self, path: &str, format: Format) -> Result<String, MetadataError> {
        let pointer = path.strip_suffix('/').unwrap_or(path);
        let data = self.data.as_ref().unwrap_or(&Value::Null);
        let value = data.pointer(pointer).ok_or(MetadataError::NotFound)?;
        match (format, value) {
            (Format::Json, value) => Ok(value.to_string()),
            (Format::Imds, Value::String(text)) => Ok(text.clone()),
            (Format::Imds, Value::Object(members)) => {
                let line = |(name, value): (&String, &Value)| {
                    if value.is_object() { format!("{name}/") } else { name.clone() }
                };
                Ok(members.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
            (Format::Imds, _) => Err(MetadataError::Unsupported),
        }
    }
}

/// RFC 7396, section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(&name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_are_merge_patches() {
        // The examples of RFC 7396, appendix A.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!(["a", "b"]), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut store = Store::new("x");
            store.put(target).unwrap();
            store.patch(patch).unwrap();
            assert_eq!(store.get(), Some(&result));
        }
    }

    #[test]
    fn too_much_is_refused_and_changes_nothing() {
        let mut store = Store::new("x");
        assert_eq!(store.patch(json!({"a": 1})), Err(MetadataError::NotInitialized));
        store.set_limit(12);
        store.put(json!({"a": "12345"})).unwrap_err();
        store.put(json!({"a": "1234"})).unwrap();
        assert_eq!(store.patch(json!({"b": 1})), Err(MetadataError::TooLarge));
        assert_eq!(store.get(), Some(&json!({"a": "1234"})));
    }

    #[test]
    fn values_have_two_forms() {
        let mut store = Store::new("x");
        assert_eq!(store.value("/a", Format::Json), Err(MetadataError::NotFound));
        let data =
            json!({"age": 43, "name": {"first": "John", "of": {"x": 1}}, "list": ["one", 2], "no": false});
        store.put(data).unwrap();
        let get = |path, format| store.value(path, format);
        assert_eq!(get("/", Format::Imds).unwrap(), "age\nlist\nname/\nno");
        assert_eq!(get("/name/", Format::Imds).unwrap(), "first\nof/");
        assert_eq!(get("/name/first", Format::Imds).unwrap(), "John");
        assert_eq!(get("/name/first", Format::Json).unwrap(), "\"John\"");
        assert_eq!(get("/list/0", Format::Imds).unwrap(), "one");
        assert_eq!(get("/name", Format::Json).unwrap(), r#"{"first":"John","of":{"x":1}}"#);
        for path in ["/age", "/list", "/no", "/list/1"] {
            assert_eq!(get(path, Format::Imds), Err(MetadataError::Unsupported), "{path}");
        }
        for path in ["/nothing", "/list/2", "name", "/name/first/x"] {
            assert_eq!(get(path, Format::Json), Err(MetadataError::NotFound), "{path}");
        }
    }
}
