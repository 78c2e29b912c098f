// Command hatch is the command line of Hatch. Its commands are named as docker's;
// those without a noun are about VMs.
//
// It calls hatchd through package client only and knows nothing of the host;
// hatch doctor, which has to, runs the hatchd program. Data goes to stdout;
// progress, errors and hints go to stderr. errors.go has the exit codes.
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
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, os.Args[1:], standardStreams())
	stop()
	os.Exit(code)
}
