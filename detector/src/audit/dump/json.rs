//! JSON, object by object.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Reader, named_after, shown};

/// Reads a file that begins like JSON. `file` stands at its beginning.
pub(super) fn read(reader: &mut Reader<'_>, path: &Path, file: impl Read) {
    let name = shown(path);
    let mut place = Place { reader, name: &name, list: list_of(path), path };
    let mut stream = serde_json::Deserializer::from_reader(file);
    loop {
        // Several objects in a row are as good as a list of them.
        match Top(&mut place).deserialize(&mut stream) {
            Ok(()) => {}
            // A value had begun: what stands before it, or behind the last, was looked at.
            Err(error) if error.is_eof() => {
                place.reader.tear(format!("{name} (line {})", error.line()), "breaks off");
                return;
            }
            Err(error) => {
                let why = format!("cannot be read as JSON (line {}): {error}", error.line());
                // Nobody can say what stands behind it.
                place.reader.tear(format!("{name} (line {})", error.line()), "is damaged");
                place.fall_back(&why);
                return;
            }
        }
        if stream.end().is_ok() {
            return;
        }
    }
}

/// What a list is of: it may say so only behind its items, so that is looked for first.
fn list_of(path: &Path) -> Option<String> {
    struct KindOnly;
    impl<'de> Visitor<'de> for KindOnly {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kind = None;
            while let Some(key) = map.next_key::<String>()? {
                if key == "kind" {
                    kind = map.next_value::<Value>()?.as_str().map(str::to_owned);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(kind)
        }
    }
    let mut file = BufReader::new(File::open(path).ok()?);
    if file.fill_buf().ok()?.starts_with(b"\xef\xbb\xbf") {
        file.consume(3);
    }
    let mut stream = serde_json::Deserializer::from_reader(file);
    let said = (&mut stream).deserialize_map(KindOnly).ok().flatten();
    let of = said.and_then(|kind| kind.strip_suffix("List").map(str::to_owned));
    of.filter(|kind| !kind.is_empty()).or_else(|| named_after(path).map(str::to_owned))
}

/// Where objects come from and go to.
struct Place<'r, 'g> {
    reader: &'r mut Reader<'g>,
    name: &'r str,
    list: Option<String>,
    path: &'r Path,
}

impl Place<'_, '_> {
    fn object(&mut self, value: Value) {
        self.reader.object(self.name, self.list.as_deref(), value);
    }

    /// The file as text, where it is no JSON after all.
    fn fall_back(&mut self, why: &str) {
        // What is not small was made by a program, and its damage is told.
        let mut text = String::new();
        let small = File::open(self.path)
            .and_then(|file| file.take(super::scraps::MOST).read_to_string(&mut text));
        if small.is_ok() {
            self.reader.scrap(self.name, 1, &text, why);
        } else {
            self.reader.gather.refuse(format!("{}: {why}", self.name));
        }
    }
}

/// The value at the top: an object, a list of Kubernetes, or a row of either.
struct Top<'p, 'r, 'g>(&'p mut Place<'r, 'g>);

impl<'de> DeserializeSeed<'de> for Top<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of Kubernetes, or a list of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        Items(self.0).visit_seq(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut own = Map::new();
        let mut is_list = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                is_list = true;
                map.next_value_seed(Items(self.0))?;
            } else {
                own.insert(key, map.next_value()?);
            }
        }
        if is_list {
            if let Some(kind) = own.get("kind").and_then(Value::as_str) {
                let version = own.get("apiVersion").and_then(Value::as_str);
                self.0.reader.list(kind, version);
            }
        } else {
            self.0.object(Value::Object(own));
        }
        Ok(())
    }
}

/// The items of a list, each let go of before the next is read.
struct Items<'p, 'r, 'g>(&'p mut Place<'r, 'g>);

impl<'de> DeserializeSeed<'de> for Items<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    /// Go writes an empty list as null.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element::<Value>()? {
            self.0.object(value);
        }
        Ok(())
    }
}
