//! YAML, object by object.
//!
//! Documents and items of lists are told apart by their indentation before anything is parsed: each is
//! parsed alone, so that one that is no YAML costs itself only. That is right for what programs write:
//! nothing within an item can begin where the item itself did.

use std::io::{self, BufRead, Read as _};
use std::path::Path;

use serde_json::Value;

use super::{Reader, named_after, shown};

/// No object is longer: etcd takes 1.5 MiB of JSON.
const LONGEST: usize = 16 << 20;

/// Reads a file.
pub(super) fn read(reader: &mut Reader<'_>, path: &Path, mut file: impl BufRead) -> io::Result<()> {
    let name = shown(path);
    let mut splitter = Splitter { name: &name, named: named_after(path), ..Splitter::default() };
    let mut line = Vec::new();
    let mut ended = true;
    loop {
        line.clear();
        let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX).saturating_add(1);
        if file.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() > LONGEST && line.last() != Some(&b'\n') {
            let place = format!("{name} (line {})", splitter.number + 1);
            reader.tear(place, "has a line that is too long");
            skip_line(&mut file)?;
            line.push(b'\n');
        }
        ended = line.last() == Some(&b'\n');
        let text = String::from_utf8_lossy(&line);
        splitter.line(reader, text.trim_end_matches(['\n', '\r']));
    }
    splitter.end_of_file(reader, ended);
    Ok(())
}

/// Goes to the end of a line without keeping it.
fn skip_line(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = file.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let (over, used) =
            (end.is_some() || buffer.is_empty(), end.map_or(buffer.len(), |at| at + 1));
        file.consume(used);
        if over {
            return Ok(());
        }
    }
}

/// What of a file is being put together.
#[derive(Default)]
struct Splitter<'a> {
    name: &'a str,
    /// What the file's name says that a list is of.
    named: Option<&'a str>,
    number: usize,
    /// Lines of the document that belong to no item.
    head: Chunk,
    /// The item of a list that is being read.
    item: Option<Chunk>,
    /// How far items are indented, within a list.
    indent: Option<usize>,
    /// Items that wait for their list to say what it is of.
    waiting: Vec<(usize, Value)>,
    is_list: bool,
}

/// Some lines.
#[derive(Default)]
struct Chunk {
    first: usize,
    text: String,
    too_long: bool,
}

impl Chunk {
    fn push(&mut self, number: usize, line: &str) {
        if self.text.is_empty() {
            self.first = number;
        }
        if self.text.len() + line.len() > LONGEST {
            self.too_long = true;
            return;
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#')
        })
    }
}

impl Splitter<'_> {
    fn line(&mut self, reader: &mut Reader<'_>, line: &str) {
        self.number += 1;
        if line == "---" || line.starts_with("--- ") || line == "..." {
            self.end_of_document(reader);
            return;
        }
        let indent = line.len() - line.trim_start_matches(' ').len();
        let rest = &line[indent..];
        let blank = rest.is_empty() || rest.starts_with('#');
        let begins_item = rest == "-" || rest.starts_with("- ");
        match self.indent {
            // Within a list: an item begins, goes on, or the list is over.
            Some(of_items) if begins_item && indent == of_items => {
                self.end_of_item(reader, true);
                let mut chunk = Chunk::default();
                let own = format!("{}{}", " ".repeat(2), rest.get(2..).unwrap_or_default());
                chunk.push(self.number, &own);
                self.item = Some(chunk);
            }
            Some(of_items) if blank || indent > of_items => {
                let number = self.number;
                let chunk = self.item.get_or_insert_default();
                chunk.push(number, line.get(of_items.min(indent)..).unwrap_or_default());
            }
            Some(_) => {
                self.end_of_item(reader, true);
                self.indent = None;
                self.head.push(self.number, line);
            }
            // `items:` opens one, and so does a document that is a list itself.
            None if begins_item && (self.opens_items() || self.head.is_blank()) => {
                self.is_list = true;
                self.indent = Some(indent);
                self.number -= 1;
                self.line(reader, line);
            }
            None => self.head.push(self.number, line),
        }
    }

    fn opens_items(&self) -> bool {
        self.head.text.lines().next_back() == Some("items:")
    }

    /// An item is over. `whole` says whether something follows it.
    fn end_of_item(&mut self, reader: &mut Reader<'_>, whole: bool) -> bool {
        let Some(chunk) = self.item.take() else { return true };
        match parse(&chunk) {
            Ok(value) if value["kind"].is_null() && value.is_object() && self.named.is_none() => {
                self.waiting.push((chunk.first, value));
                true
            }
            Ok(value) => {
                reader.object(self.name, self.named, value);
                true
            }
            Err(_) if !whole => false,
            Err(why) => {
                reader.scrap(self.name, chunk.first, &chunk.text, &why);
                true
            }
        }
    }

    fn end_of_document(&mut self, reader: &mut Reader<'_>) {
        self.end_of_item(reader, true);
        self.indent = None;
        let head = std::mem::take(&mut self.head);
        let is_list = std::mem::take(&mut self.is_list);
        let waiting = std::mem::take(&mut self.waiting);
        if is_list {
            let kind = value_of(&head.text, "kind:");
            if let Some(kind) = kind {
                reader.list(kind, value_of(&head.text, "apiVersion:"));
            }
            let of = kind.and_then(|kind| kind.strip_suffix("List")).filter(|of| !of.is_empty());
            for (_, value) in waiting {
                reader.object(self.name, of, value);
            }
        } else if !head.is_blank() {
            match parse(&head) {
                // An empty list is written in one line.
                Ok(value) if value["items"].is_array() => {
                    let kind = value["kind"].as_str().unwrap_or_default();
                    reader.list(kind, value["apiVersion"].as_str());
                }
                Ok(value) => reader.object(self.name, self.named, value),
                Err(why) => reader.scrap(self.name, head.first, &head.text, &why),
            }
        }
    }

    /// `ended` says whether the last line was one.
    fn end_of_file(&mut self, reader: &mut Reader<'_>, ended: bool) {
        // kubectl writes what a list is behind its items: where that is missing, so is more.
        let listed = self.is_list && self.head.text.lines().any(|line| line == "items:");
        let within = listed && (self.indent.is_some() || !ended);
        // Where it is said in front of them, only an item that has its end is the last.
        let of_list = within
            && (value_of(&self.head.text, "kind:").is_none()
                || self.item.as_ref().is_some_and(|item| !has_its_end(item)));
        let in_object = !ended && !self.is_list && parse(&self.head).is_err();
        if of_list || in_object {
            let complete = self.end_of_item(reader, false);
            let within = if complete { "" } else { ", within an object" };
            let place = format!("{} (line {}{within})", self.name, self.number);
            reader.tear(place, "breaks off");
            if in_object {
                let head = std::mem::take(&mut self.head);
                reader.scrap(self.name, head.first, &head.text, "breaks off");
                return;
            }
        }
        self.end_of_document(reader);
    }
}

/// Whether an item is there to its end, as far as it can show that itself: in braces it does; of others
/// the API server writes what is asked for here behind all that is read. Lists of rules or of subjects
/// show no end.
fn has_its_end(item: &Chunk) -> bool {
    let Ok(value) = parse(item) else { return false };
    if item.text.trim_end().ends_with('}') && item.text.trim_start().starts_with('{') {
        return true;
    }
    match value["kind"].as_str() {
        Some("Pod") => {
            value["spec"]["containers"].is_array() && value["status"]["qosClass"].is_string()
        }
        Some("Node") => value["status"]["nodeInfo"].is_object(),
        Some("Service") => value["status"]["loadBalancer"].is_object(),
        _ => false,
    }
}

fn parse(chunk: &Chunk) -> Result<Value, String> {
    if chunk.too_long {
        return Err(format!("is longer than {} MiB", LONGEST >> 20));
    }
    // A node that is called `n` is no boolean.
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    serde_saphyr::from_str_with_options::<Value>(&chunk.text, options).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        format!("cannot be read as YAML ({})", crate::text::printable(first, 160))
    })
}

/// The value of `kind:` or another key among the lines of a list that belong to no item.
fn value_of<'a>(head: &'a str, key: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}
