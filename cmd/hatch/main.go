// Command hatch is the command line of Hatch, in docker's words: VMs are the
// noun that nobody needs to type.
//
// It speaks to hatchd only, through package client, and knows nothing of the
// host; hatch doctor, which has to, runs the hatchd program. Data goes to
// stdout; progress, errors and hints to stderr. Its own failures exit with 125;
// hatch exec, ssh and run -- COMMAND pass the guest's exit code on.
// Start at [run]; each noun or group of verbs has a file.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], standardStreams())
	stop()
	os.Exit(code)
}
