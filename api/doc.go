// Package api holds the wire types of Hatch's REST API: what a client sends
// and what it gets back, field by field, with the names of the documentation.
//
// It imports the standard library only, so that the public client, the CLI and
// the daemon can share it. The tags `doc`, `enum`, `minimum` and so on feed the
// OpenAPI description; they are plain strings here. It holds no behaviour.
// Start at [VM] and [CreateVM].
package api
