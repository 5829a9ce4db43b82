//! Measurements on the real kernel.

mod filters;
pub mod flood;
pub mod interfaces;
pub mod sinks;
pub mod throughput;
pub mod writer;

/// The median, and between which figures it is by 95 %, whatever their distribution: so many ranks
/// away as heads are, of as many coins, from a half of them. A standard deviation is half the root of
/// their number, and 1.96 of them are a little less than the root.
fn middle(figures: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let away = figures.len().isqrt() + 1;
    let least = middle.saturating_sub(away);
    let most = (middle + away).min(figures.len() - 1);
    [figures[least], figures[middle], figures[most]]
}
