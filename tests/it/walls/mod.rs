//! The walls: what a hostile guest sends, and what anybody sees of it.

mod policies;
mod reach;
mod scene;
mod spoofing;
mod tables;
