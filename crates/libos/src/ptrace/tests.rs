//! Who traces whom, stops and what wait tells of them, on the test host.
