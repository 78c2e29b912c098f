// Package api holds the wire types of Hatch's REST API: the bodies of requests
// and responses.
//
// It imports the standard library only, so that the client, the CLI and hatchd
// can share it. The tags `doc`, `enum`, `minimum` and so on are for the OpenAPI
// description. It has no behaviour beside encoding to JSON and decoding from it.
// Start at [VM] and [CreateVM].
package api
