//! Standard output: every finding, as a line of JSON or as text, in the order in which they came.

use std::io::{self, Write as _};

use super::outlet::{Inlet, Message};
use super::text;
use crate::config::Output;

/// Writes until there is no more to write, or nobody reads.
pub(super) fn run(mut inlet: Inlet, output: Output) {
    let mut line = Vec::with_capacity(4096);
    while let Some(delivery) = inlet.blocking_next() {
        line.clear();
        match (&delivery.message, output) {
            (Message::Report(report), Output::Json) => report.write_json(&mut line),
            (Message::Report(report), Output::Text) => text::write(report, &mut line),
            (Message::Summary(summary), Output::Json) => summary.write_json(&mut line),
            (Message::Summary(summary), Output::Text) => text::write_summary(summary, &mut line),
        }
        let mut out = io::stdout().lock();
        match out.write_all(&line).and_then(|()| out.flush()) {
            Ok(()) => inlet.delivered(1, delivery.numbers),
            Err(error) => {
                let why = format!(
                    "standard output cannot be written ({error}): no more findings go there"
                );
                inlet.failed(1, &why, delivery.numbers);
                // Nobody reads any more: what comes is counted.
                while let Some(delivery) = inlet.blocking_next() {
                    inlet.failed(1, &why, delivery.numbers);
                }
                return;
            }
        }
    }
}
