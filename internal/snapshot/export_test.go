package snapshot

// PruneAt is Run with a clock of the test's.
var PruneAt = (*Service).pruneAt
