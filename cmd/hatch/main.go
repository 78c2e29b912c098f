// Command hatch is the command line of Hatch. Its commands are named as docker's;
// those without a noun are about VMs.
//
// It calls hatchd through package client only and knows nothing of the host;
// hatch doctor, which has to, runs the hatchd program. Data goes to stdout;
// progress, errors and hints go to stderr. hatch's own errors exit with 125; hatch
// exec, ssh and run -- COMMAND exit with the guest's code.
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
