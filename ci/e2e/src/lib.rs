//! The product as its users meet it: a site of virtual machines that boot from sticks.
//!
//! Uses the built binaries and the built image, nothing of the product's code: what the stories see is what a user sees.

pub mod airgap;
pub mod bench;
pub mod binaries;
pub mod guest;
pub mod hostile;
pub mod nginx;
pub mod outage;
pub mod planted;
pub mod progress;
pub mod site;

pub use binaries::{Binaries, Ctl};
pub use site::{Node, Site, SiteOptions};
