//! The configuration reference, as it is published: `docs/configuration.md` for people, and
//! `docs/schema/config.v1.json` for editors and for whoever checks a file before it is here.
//!
//! Every key is named once, in [`keys`]. What can be had from elsewhere is had from there: defaults from
//! the configuration of an empty file, limits from those that values are held against, words from their
//! types, flags and variables from the command line. Tests hold the keys against those that the file takes
//! and against what a running agent takes over. A schema derived from the file's types would know none of
//! this: there each value is a text with its place, so that what is wrong can be told with line and column.

mod keys;
mod schema;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, CommandFactory as _};
use serde_json::Value;

use self::keys::{Key, keys};
pub(super) use self::schema::schema;
use super::{Config, ConfigError, File, RunArgs};
use crate::cli::Cli;

/// What stands above the tables.
const HEAD: &str = "\
# Configuration

Written by `detector config reference`; a test holds it against the program.

The agent reads a YAML file that `--config` or `DETECTOR_CONFIG` names.
All keys are optional; what is misspelt, twice there or out of range is refused with its line and column, and the agent does not start.
A flag wins over its environment variable, and both win over the file.
`detector config check FILE` checks a file, `detector config show` prints what all of it amounts to, and [schema/config.v1.json](schema/config.v1.json) is the file's JSON Schema, for editors.
[../deploy/config.example.yaml](../deploy/config.example.yaml) has every key with its default.

While the agent runs, it follows the file, and takes `floatingIPs.allow` over at once (\"at once\" below).
For every other key the log says that the agent wants a restart.
A file that is refused leaves what was in force in force.
";

/// The groups of keys, each a table.
const GROUPS: [(&str, &str, &str); 9] = [
    ("", "The agent", ""),
    ("api.", "The API server", ""),
    ("grace.", "How long to wait before a verdict", ""),
    ("alerts.", "How often people are told of what", ""),
    ("sinks.journald.", "The node's journal", ""),
    ("sinks.events.", "Kubernetes Events", ""),
    (
        "sinks.alertmanagers[].",
        "Alertmanagers",
        "A list; each entry needs `name`, and `url` or `urlFile`.",
    ),
    ("sinks.webhooks[].", "Webhooks", "A list; each entry needs `name`, and `url` or `urlFile`."),
    (
        "floatingIPs.allow[].",
        "Floating IPs that may be",
        "A list of at most 4096 entries; each needs `cidr`, `namespace` and `serviceAccount`. \
         FloatingIPAllowance objects of the cluster say the same.",
    ),
];

/// The reference as Markdown.
pub(super) fn markdown() -> Result<String, ConfigError> {
    let keys = keys();
    let defaults = defaults()?;
    let command = Cli::command();
    let run = command.find_subcommand("run");
    let flags: Vec<&Arg> = run.map(|run| run.get_arguments().collect()).unwrap_or_default();
    let mut text = HEAD.to_owned();
    for (prefix, title, about) in GROUPS {
        let own = keys.iter().filter(|key| key.group() == prefix);
        let _ = write!(text, "\n## {title}\n\n");
        if !about.is_empty() {
            let _ = write!(text, "{about}\n\n");
        }
        text += "| key | value | default | flag | variable | taken over | meaning |\n\
                 |---|---|---|---|---|---|---|\n";
        for key in own {
            let flag =
                key.flag.and_then(|name| flags.iter().find(|arg| arg.get_long() == Some(name)));
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} | {} | {} |",
                key.path,
                key.kind.words(),
                key.default(&defaults),
                flag.map_or(String::new(), |arg| shown_flag(arg)),
                flag.map_or(String::new(), |arg| shown_variable(arg)),
                if key.is_live() { "at once" } else { "restart" },
                key.means
            );
        }
    }
    text += "\n## Flags and variables without a key\n\n\
             | flag | variable | default | meaning |\n|---|---|---|---|\n";
    let of_a_key =
        |arg: &Arg| keys.iter().any(|key| key.flag.is_some() && key.flag == arg.get_long());
    for arg in flags.iter().filter(|arg| !of_a_key(arg) && arg.get_long() != Some("help")) {
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy());
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let default =
            default.filter(|_| arg.get_num_args().is_none_or(|range| range.takes_values()));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            shown_flag(arg),
            shown_variable(arg),
            default.map_or(String::new(), |default| format!("`{default}`")),
            help.replace('|', "\\|")
        );
    }
    text += "\n`NODE_NAME` comes from `spec.nodeName` of the pod. \
             `NO_COLOR`, where it is set, takes the colour from what commands print.\n";
    Ok(text)
}

/// What an empty file amounts to.
fn defaults() -> Result<Value, ConfigError> {
    let args = RunArgs { node_name: Some("any".into()), ..RunArgs::default() };
    let yaml = Config::resolve(&args, &File::parse(Path::new("defaults"), "")?)?.to_yaml()?;
    serde_saphyr::from_str(&yaml).map_err(|error| ConfigError::Show(error.to_string()))
}

fn shown_flag(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    arg.get_long().map_or(String::new(), |long| format!("{short}`--{long}`"))
}

fn shown_variable(arg: &Arg) -> String {
    arg.get_env().map_or(String::new(), |name| format!("`{}`", name.to_string_lossy()))
}

// === impl Key ===

impl Key {
    /// The group that it belongs to.
    fn group(&self) -> &'static str {
        let own = |(prefix, _, _): &&(&'static str, _, _)| self.path.starts_with(prefix);
        GROUPS
            .iter()
            .filter(own)
            .map(|(prefix, _, _)| *prefix)
            .max_by_key(|p| p.len())
            .unwrap_or("")
    }

    /// Whether a running agent takes a change of it over.
    fn is_live(&self) -> bool {
        self.path.starts_with("floatingIPs.allow")
    }

    /// Its default in an empty file, where it has one.
    fn value<'a>(&self, defaults: &'a Value) -> Option<&'a Value> {
        if self.path == "nodeName" || self.path.contains("[]") {
            return None;
        }
        self.path.split('.').try_fold(defaults, |value, key| value.get(key))
    }

    fn default(&self, defaults: &Value) -> String {
        match self.value(defaults) {
            Some(Value::String(text)) => format!("`{text}`"),
            Some(value) => format!("`{value}`"),
            None => self.absent.to_owned(),
        }
    }
}
