//! The JSON Schema of the file.

use serde_json::{Map, Value, json};

use super::keys::{Kind, keys};
use super::{ConfigError, defaults};

/// What an entry of a list must have, by the list's path.
const REQUIRED: [(&str, &[&str]); 3] = [
    ("sinks.alertmanagers[]", &["name"]),
    ("sinks.webhooks[]", &["name"]),
    ("floatingIPs.allow[]", &["cidr", "namespace", "serviceAccount"]),
];

/// The schema. It is a little laxer than the agent: host bits, say, it cannot see.
pub(in crate::config) fn schema() -> Result<Value, ConfigError> {
    let defaults = defaults()?;
    let mut root = object();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["$id"] = json!("urn:detector:config:v1");
    root["title"] = json!("The configuration file of the agent");
    for key in keys() {
        let mut at = &mut root;
        let mut path = String::new();
        let (parents, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            path = if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
            at = step(at, part, &path);
        }
        let mut property = key.kind.schema();
        // In Markdown it has marks around words.
        property["description"] = json!(key.means.replace('`', ""));
        if let Some(default) = key.value(&defaults) {
            property["default"] = default.clone();
        }
        at["properties"][name] = property;
    }
    Ok(root)
}

/// The schema of what is under this key, made where it is not there yet.
fn step<'a>(at: &'a mut Value, part: &str, path: &str) -> &'a mut Value {
    let (name, is_list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
    let properties = &mut at["properties"];
    if properties.get(name).is_none() {
        let mut inner = object();
        if is_list {
            let required = REQUIRED.iter().find(|(list, _)| *list == path);
            inner["required"] = json!(required.map_or(&[][..], |(_, keys)| keys));
            if path.starts_with("sinks.") {
                inner["oneOf"] = json!([{ "required": ["url"] }, { "required": ["urlFile"] }]);
            }
            inner = json!({ "type": "array", "items": inner, "default": [] });
        }
        properties[name] = inner;
    }
    let there = &mut properties[name];
    if is_list { &mut there["items"] } else { there }
}

fn object() -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": Map::new() })
}

// === impl Kind ===

impl Kind {
    fn schema(&self) -> Value {
        match self {
            Self::Text(_) => json!({ "type": "string", "minLength": 1 }),
            Self::Pattern(_, pattern) => json!({ "type": "string", "pattern": pattern }),
            Self::Bool => json!({ "type": "boolean" }),
            Self::Choice(words) => json!({ "type": "string", "enum": words }),
            Self::Duration(_, _) => json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" }),
            Self::Number(least, most) | Self::Power(least, most) => {
                json!({ "type": "integer", "minimum": least, "maximum": most })
            }
            Self::List(_, least) => json!({
                "type": "array", "items": { "type": "string", "minLength": 1 },
                "minItems": least, "uniqueItems": true,
            }),
        }
    }
}
