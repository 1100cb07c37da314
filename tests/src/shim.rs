//! How a program gets to a node of ours with the client shim: by `vidcompat run`, as people do it, or with LD_PRELOAD
//! and our node's path.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::{Client, run_any};
use crate::nodes::Found;
use crate::setup::both_real;

/// A place from which a program uses a device: which path it is given, and what stands before its name.
#[derive(Clone, Debug)]
pub struct Seat {
    /// For messages.
    pub name: &'static str,
    /// Of the node, as the program is to be told.
    pub path: PathBuf,
    before: Vec<String>,
}

/// The shim.
pub fn library() -> anyhow::Result<PathBuf> {
    let library = std::env::current_exe()?.with_file_name("libvidcompat.so");
    ensure!(library.exists(), "there is no {}", library.display());
    Ok(library)
}

/// A shim of another version than the daemon's, which tests/other-shim builds. Neither knows the other's ioctls, whichever
/// is the older.
pub fn other_version() -> anyhow::Result<String> {
    let library = std::env::current_dir()?.join("target/other-shim/libvidcompat.so");
    ensure!(library.exists(), "there is no {}", library.display());
    Ok(library.display().to_string())
}

impl Seat {
    /// The real node.
    pub fn real(node: &Found) -> Self {
        Self {
            name: "on the real node",
            path: node.real(),
            before: vec![],
        }
    }

    /// Ours without the shim.
    pub fn plain(node: &Found) -> Self {
        Self {
            name: "on ours",
            path: node.ours(),
            before: vec![],
        }
    }

    /// Ours, by its own path, with the shim as the only preloaded library.
    pub fn preloaded(node: &Found) -> anyhow::Result<Self> {
        Self::preloaded_with(node, &[], &[])
    }

    /// The same with other libraries before and after the shim.
    pub fn preloaded_with(node: &Found, first: &[&str], last: &[&str]) -> anyhow::Result<Self> {
        if both_real() {
            return Self::real(node).with_preload(&[first, last].concat());
        }
        let library = library()?;
        let library = library.to_str().context("no text")?;
        let seat = Self {
            name: "with the shim on ours",
            path: node.ours(),
            before: vec![],
        };
        seat.with_preload(&[first, &[library], last].concat())
    }

    /// As this one, with these libraries preloaded.
    pub fn with_preload(mut self, libraries: &[&str]) -> anyhow::Result<Self> {
        ensure!(self.before.is_empty(), "there is something before it already");
        for library in libraries {
            ensure!(Path::new(library).exists(), "there is no {library}");
        }
        if !libraries.is_empty() {
            self.before = vec!["env".into(), format!("LD_PRELOAD={}", libraries.join(":"))];
        }
        Ok(self)
    }

    /// As this one, with one more variable (`NAME=value`) in the environment.
    pub fn with_environment(mut self, variable: &str) -> Self {
        if self.before.is_empty() {
            self.before.push("env".into());
        }
        self.before.push(variable.into());
        self
    }

    /// Through `vidcompat run`: ours stands at the real one's path.
    pub fn run(node: &Found) -> Self {
        if both_real() {
            return Self::real(node);
        }
        Self {
            name: "through vidcompat run",
            path: node.real(),
            before: ["vidcompat", "run", "--quiet", "--"].map(String::from).to_vec(),
        }
    }

    /// A path, as it is.
    pub fn at(name: &'static str, path: PathBuf) -> Self {
        Self {
            name,
            path,
            before: vec![],
        }
    }

    /// A path through `vidcompat run`.
    pub fn run_at(name: &'static str, path: PathBuf) -> Self {
        Self {
            before: ["vidcompat", "run", "--quiet", "--"].map(String::from).to_vec(),
            ..Self::at(name, path)
        }
    }

    /// The words of a program's call, `NODE` in them being the node.
    pub fn words(&self, words: &[&str]) -> Vec<String> {
        let path = self.path.display().to_string();
        let words = words.iter().map(|word| word.replace("NODE", &path));
        self.before.iter().cloned().chain(words).collect()
    }

    /// The same as one line for a shell; no word may hold anything that a shell reads.
    pub fn line(&self, words: &str) -> String {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.words(&words).join(" ")
    }

    /// Runs a program to its end: how it ended, and what it said.
    pub fn play(&self, words: &[&str], limit: Duration) -> anyhow::Result<(ExitStatus, String)> {
        let words = self.words(words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run_any(words[0], &words[1..], limit).with_context(|| self.name)
    }

    /// Starts a program.
    pub fn start(&self, words: &[&str]) -> anyhow::Result<Client> {
        let words = self.words(words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Client::start(words[0], &words[1..]).with_context(|| self.name)
    }
}
