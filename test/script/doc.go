// Package script holds the manual as scripts: each *.txtar shows one side of
// Hatch with the real hatchd and hatch programs, and fails when they do not do
// what it says.
//
// The daemons run the fake driver: no root, no VMM, no guests; what guests do
// is shown by test/e2e. Start at first-start.txtar and life.txtar.
package script
