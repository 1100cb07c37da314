//! A session, written down for the daemon after us: what it reads ([`Image`]), and how that is written from what a session
//! has ([`View`]), after each change.

mod image;
mod view;

pub(super) use image::*;
pub use image::{Lost, Opening};
pub(super) use view::View;

#[cfg(test)]
mod tests;
