// Package script holds the manual as scripts: each *.txtar shows one side of
// Hatch with the programs themselves, and fails when they do not do what it
// says.
//
// The daemons are hatchd-fake, which is hatchd on a fake host: no root, no VMM,
// no guests; what guests do is shown by test/e2e. Start at first-start.txtar and life.txtar.
package script
