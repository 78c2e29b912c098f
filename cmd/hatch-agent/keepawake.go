package main

import (
	"context"
	"fmt"
	"io"

	"github.com/hatchvm/hatch/internal/agent/awake"
)

const keepAwakeUsage = awake.Command + " [DURATION], such as 10m; 0 ends it"

// keepAwake asks the agent of this guest to keep it awake, and prints how much longer it
// is. Without a duration it only prints that.
func keepAwake(out io.Writer, args []string) error {
	duration := ""
	switch {
	case len(args) > 1:
		return fmt.Errorf("%d arguments are too many; the usage is: hatch-agent %s", len(args), keepAwakeUsage)
	case len(args) == 1:
		if _, err := awake.ParseDuration(args[0]); err != nil {
			return err
		}
		duration = args[0]
	}
	left, err := awake.Ask(context.Background(), awake.Socket, duration)
	if err != nil {
		return err
	}
	if left == 0 {
		fmt.Fprintln(out, "not kept awake")
		return nil
	}
	fmt.Fprintf(out, "kept awake for %s\n", left)
	return nil
}
