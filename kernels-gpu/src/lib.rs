//! Placeholder until the first family lands.
#![no_std]
