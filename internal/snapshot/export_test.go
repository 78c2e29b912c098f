package snapshot

// PruneAt is Run with the ticks of a test.
var PruneAt = (*Service).pruneAt
