//! One object being read, and what of it is not taken.

use std::net::IpAddr;

use detector_core::route::Prefix;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::address::cidr_or_ip;
use crate::source::cluster::rejection::{Reason, Rejection};

/// No list is read further: a pod has two addresses, and a floating IP for each Service at most.
pub(super) const MOST_ENTRIES: usize = 256;

/// One object being read.
pub(super) struct Reader<'a> {
    kind: &'static str,
    metadata: &'a ObjectMeta,
    pub(super) rejections: Vec<Rejection>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(kind: &'static str, metadata: &'a ObjectMeta) -> Self {
        Self { kind, metadata, rejections: Vec::new() }
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&'a str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn rejection(&self, field: &'static str, reason: Reason, value: &str) -> Rejection {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let object = match &self.metadata.namespace {
            Some(namespace) => format!("{} {namespace}/{name}", self.kind),
            None => format!("{} {name}", self.kind),
        };
        Rejection::new(&object, field, reason, value)
    }

    /// Writes down that something was not taken. What was refused is as bounded as what was taken.
    pub(super) fn reject(&mut self, field: &'static str, reason: Reason, value: &str) {
        let reason = match self.rejections.len() + 1 {
            count if count < MOST_ENTRIES => reason,
            MOST_ENTRIES => Reason::TooMany,
            _ => return,
        };
        let rejection = self.rejection(field, reason, value);
        self.rejections.push(rejection);
    }

    /// A name or id: printable, without white space, not empty and not long.
    pub(super) fn identifier(
        &self,
        field: &'static str,
        text: Option<&str>,
        longest: usize,
    ) -> Result<Box<str>, Rejection> {
        match text {
            None | Some("") => Err(self.rejection(field, Reason::Missing, "")),
            Some(text) if text.len() <= longest && text.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(text.into())
            }
            Some(text) => Err(self.rejection(field, Reason::Malformed, text)),
        }
    }

    /// The same for what an object can be without.
    pub(super) fn optional(
        &mut self,
        field: &'static str,
        text: &str,
        longest: usize,
    ) -> Option<Box<str>> {
        let taken = self.identifier(field, Some(text), longest);
        taken.map_err(|rejection| self.reject(field, rejection.reason, text)).ok()
    }

    /// Takes one entry into a list, each once: saying a thing twice is no error. `false` where
    /// nothing more is taken.
    pub(super) fn take<T: PartialEq>(
        &mut self,
        list: &mut Vec<T>,
        field: &'static str,
        text: &str,
        entry: Result<T, Reason>,
    ) -> bool {
        match entry {
            Ok(entry) if list.contains(&entry) => {}
            Ok(_) if list.len() == MOST_ENTRIES => {
                self.reject(field, Reason::TooMany, text);
                return false;
            }
            Ok(entry) => list.push(entry),
            Err(reason) => self.reject(field, reason, text),
        }
        self.rejections.len() < MOST_ENTRIES
    }

    /// Takes each of some texts into a list.
    pub(super) fn take_all<'t, T: PartialEq>(
        &mut self,
        field: &'static str,
        texts: impl IntoIterator<Item = &'t str>,
        parse: impl Fn(&str) -> Result<T, Reason>,
    ) -> Vec<T> {
        let mut list = Vec::new();
        for text in texts {
            if !self.take(&mut list, field, text, parse(text)) {
                break;
            }
        }
        list
    }

    /// An annotation that is a JSON list of strings. `null` is an empty list, and in the list an
    /// empty string, to Go as here.
    pub(super) fn json_list<T: PartialEq>(
        &mut self,
        key: &'static str,
        text: &str,
        parse: impl Fn(&str) -> Result<T, Reason>,
    ) -> Vec<T> {
        let mut list = Vec::new();
        let Ok(entries) = serde_json::from_str::<Option<Vec<Value>>>(text) else {
            self.reject(key, Reason::NotAJsonList, text);
            return list;
        };
        for entry in entries.unwrap_or_default() {
            let goes_on = match &entry {
                Value::String(entry) => self.take(&mut list, key, entry, parse(entry)),
                Value::Null => self.take(&mut list, key, "", parse("")),
                other => self.take(&mut list, key, &other.to_string(), Err(Reason::NotAString)),
            };
            if !goes_on {
                break;
            }
        }
        list
    }

    /// Addresses with or without their length: hosts, and what is wider.
    pub(super) fn hosts_and_prefixes<'t>(
        &mut self,
        key: &'static str,
        texts: impl IntoIterator<Item = &'t str>,
    ) -> (Vec<IpAddr>, Vec<Prefix>) {
        let (mut hosts, mut wider) = (Vec::new(), Vec::new());
        for entry in texts {
            let goes_on = match cidr_or_ip(entry) {
                Ok((address, prefix)) if prefix.is_host() => {
                    self.take(&mut hosts, key, entry, Ok(address))
                }
                Ok((_, prefix)) => self.take(&mut wider, key, entry, Ok(prefix)),
                Err(reason) => self.take(&mut hosts, key, entry, Err(reason)),
            };
            if !goes_on {
                break;
            }
        }
        (hosts, wider)
    }
}

/// A JSON value as it is shown in a rejection: texts without their quotes.
pub(super) fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
