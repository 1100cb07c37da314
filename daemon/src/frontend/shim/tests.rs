//! The server against clients that behave and clients that do not, without a device.

mod clients;
mod flood;
mod messages;
