//! The walls: what a hostile guest sends, and what anybody sees of it.

mod agree;
mod bound;
mod caps;
mod cases;
mod change;
mod egress;
mod foreign_frames;
mod forwards;
mod others;
mod policies;
mod privileges;
mod reach;
mod scene;
mod spoofing;
mod tables;
mod workspaces;
