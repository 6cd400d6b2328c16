//! Every model of code that shares words without a lock holds, and is able to fail: `tests/models/program.rs` says more.

mod support;

use std::sync::Once;

#[test]
fn every_course_of_every_model_ends_well() {
    static BUILT: Once = Once::new();
    let ran = support::programs::run(&mut support::example("models", &BUILT), "");
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
}
