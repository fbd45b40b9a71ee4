//! What the person sees: one screen of lines, a bar that moves in place on a terminal and prints now and then elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

const BAR: usize = 32;
/// Where a long message is broken.
const MESSAGE: usize = 110;
/// Without a terminal a moving bar is a new line: not more often than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

pub struct Screen {
    colours: bool,
    terminal: bool,
    began: Instant,
    bar_shown: Option<(Instant, String)>,
}

#[derive(Clone, Copy)]
pub enum Tone {
    Good,
    Bad,
    Water,
}

impl Screen {
    pub fn new(no_color: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { colours: terminal && !no_color, terminal, began: Instant::now(), bar_shown: None }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A new part of the story.
    pub fn title(&mut self, text: &str) {
        self.line(&format!("\n{}", self.paint("1", text)));
    }

    pub fn say(&mut self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// A command as a person would type it.
    pub fn command(&mut self, text: &str) {
        self.line(&format!("  {}", self.paint("36", &format!("$ {text}"))));
    }

    /// A file or an output, as it is.
    pub fn quote(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&format!("    {}", self.paint("2", line)));
        }
    }

    /// A step that held.
    pub fn held(&mut self, text: &str) {
        self.line(&format!("  {} {text}", self.paint("32", "✓")));
    }

    pub fn failed(&mut self, text: &str) {
        self.line(&format!("  {} {text}", self.paint("31", "✗")));
    }

    /// Something happens to the world.
    pub fn event(&mut self, text: &str) {
        self.line(&format!("  {}", self.paint("33", text)));
    }

    /// The bar: drawn in place on a terminal.
    pub fn bar(&mut self, name: &str, percent: usize, tone: Tone, words: &str) {
        let filled = BAR * percent.min(100) / 100;
        let colour = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Water => "34",
        };
        let (water, shore) = ("█".repeat(filled), "░".repeat(BAR - filled));
        let bar = format!("{}{}", self.paint(colour, &water), self.paint("2", &shore));
        let text = format!("  {name:<8} {bar} {percent:>3} %  {words}");
        if self.terminal {
            print!("\r\x1b[2K{text}");
            // A terminal that is gone is no reason to stop.
            let _ = std::io::stdout().flush();
            self.bar_shown = Some((Instant::now(), text));
        } else if self.bar_shown.as_ref().is_none_or(|(at, last)| at.elapsed() > PLAIN_INTERVAL && *last != text) {
            println!("{text}");
            self.bar_shown = Some((Instant::now(), text));
        }
    }

    /// The bar stays as it is now, and what follows goes below it.
    pub fn keep_bar(&mut self) {
        if self.bar_shown.take().is_some() && self.terminal {
            println!();
        }
    }

    fn line(&mut self, text: &str) {
        self.keep_bar();
        println!("{text}");
    }

    pub fn paint(&self, code: &str, text: &str) -> String {
        match self.colours {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Breaks a long message between words; what has no spaces stays whole.
pub fn wrapped(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split_inclusive(' ') {
        let last = lines.last_mut().expect("there is always one");
        match last.is_empty() || last.len() + word.len() <= MESSAGE {
            true => last.push_str(word),
            false => lines.push(word.to_owned()),
        }
    }
    lines
}

/// 3.2 MiB, 512 KiB, 1.0 GiB
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
