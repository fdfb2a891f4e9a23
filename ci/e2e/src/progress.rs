//! What happened and when: a progress display on the way, a table at the end.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// The steps of a long run, as they are shown to people.
pub struct Progress {
    start: Instant,
    rows: Vec<(f64, String)>,
    bar: ProgressBar,
}

impl Progress {
    /// A run of about this many steps, which begins now.
    pub fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{spinner} [{pos}/{len}] {elapsed_precise} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self {
            start: Instant::now(),
            rows: Vec::new(),
            bar,
        }
    }

    /// Says what is going on.
    pub fn doing(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        if self.bar.is_hidden() {
            eprintln!("[{:>6.1} s] {what} …", self.start.elapsed().as_secs_f64());
        }
    }

    /// Says what was done; a row of the table.
    pub fn done(&mut self, what: String) {
        let at = self.start.elapsed().as_secs_f64();
        self.bar.inc(1);
        self.bar.suspend(|| eprintln!("[{at:>6.1} s] {what}"));
        self.rows.push((at, what));
    }

    /// Ends the display and prints the table.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        println!("\n   when  what");
        for (at, what) in &self.rows {
            println!("{at:>6.1}s  {what}");
        }
    }
}
