//! How messages are on the wire.

use std::io::{self, BufRead, Read as _, Write};

use anyhow::{Context as _, Result, ensure};

use super::Headers;

/// Sends a message in one piece, so that nothing waits for the other side to acknowledge a first.
pub(super) fn send(
    writer: &mut impl Write,
    start: String,
    headers: &Headers,
    body: &[u8],
) -> io::Result<()> {
    let mut piece = start.into_bytes();
    for (name, value) in headers.iter() {
        write!(piece, "{name}: {value}\r\n")?;
    }
    write!(piece, "Content-Length: {}\r\n\r\n", body.len())?;
    piece.extend_from_slice(body);
    writer.write_all(&piece)?;
    writer.flush()
}

/// The first line and the head; `None` where the connection has ended before.
pub(super) fn read_head(reader: &mut impl BufRead) -> Result<Option<(String, Headers)>> {
    let Some(start) = read_line(reader)? else { return Ok(None) };
    let mut headers = Headers::default();
    loop {
        let line = read_line(reader)?.context("the connection ended within a head")?;
        if line.is_empty() {
            return Ok(Some((start, headers)));
        }
        let (name, value) = line.split_once(':').context("a line of a head without a name")?;
        headers.add(name, value.trim());
    }
}

/// Whether there is a body, said in the head.
pub(super) fn has_stated_body(headers: &Headers) -> bool {
    headers.get("content-length").is_some() || headers.get("transfer-encoding").is_some()
}

/// The body: in pieces, of a length, or all that comes.
pub(super) fn read_body(reader: &mut impl BufRead, headers: &Headers) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let coding = headers.get("transfer-encoding").unwrap_or_default();
    if coding.eq_ignore_ascii_case("chunked") {
        loop {
            let line = read_line(reader)?.context("the connection ended within a body")?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16)
                .with_context(|| format!("not the size of a piece: {line:?}"))?;
            if size == 0 {
                break;
            }
            read_exactly(reader, size, &mut body)?;
            ensure!(read_line(reader)?.is_some_and(|line| line.is_empty()), "a piece is too long");
        }
        // What may follow the body ends as a head does.
        while read_line(reader)?.is_some_and(|line| !line.is_empty()) {}
    } else if let Some(length) = headers.get("content-length") {
        let length = length.parse().with_context(|| format!("not a length: {length:?}"))?;
        read_exactly(reader, length, &mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(body)
}

fn read_exactly(reader: &mut impl BufRead, size: u64, body: &mut Vec<u8>) -> Result<()> {
    let read = reader.by_ref().take(size).read_to_end(body)?;
    ensure!(read as u64 == size, "the connection ended within a body");
    Ok(())
}

/// A line without its end; `None` where the connection has ended before.
fn read_line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    ensure!(line.ends_with('\n'), "the connection ended within a line: {line:?}");
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}
