//! vidcompatd: CUSE nodes in front of real V4L2 nodes.
//!
//! The way of a request: [`cuse`] reads it, [`frontend`] hands it to a [`session`], which asks the queue core of
//! `vidcompat-proto`, a [`client`]'s memory, what stands behind it ([`resolve`]), the real device ([`backend`]) and
//! [`memory`], and answers. [`devices`]
//! makes the nodes, [`service`] starts and ends all of it, [`observe`] tells people what goes on, [`run`] puts a program on our
//! nodes, [`sys`] holds the raw system calls.
#![deny(unsafe_code)]

pub mod backend;
pub mod claim;
pub mod cli;
pub mod client;
pub mod config;
pub mod confine;
pub mod cuse;
pub mod devices;
pub mod frontend;
pub mod keeper;
pub mod memory;
pub mod observe;
pub mod resolve;
pub mod run;
pub mod screen;
pub mod service;
pub mod session;
pub mod survive;
#[allow(unsafe_code)]
pub mod sys;
pub mod tickets;
