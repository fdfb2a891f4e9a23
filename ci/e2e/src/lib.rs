//! Stories that boot the product.
