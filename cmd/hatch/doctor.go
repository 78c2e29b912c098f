package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

func (c *cli) doctorCommand() *cobra.Command {
	var fix bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Examine this host: whether it can run VMs, and what is missing", Args: noArgs,
		Long: `Examine this host, on which hatchd is to run. Each check that fails ends with the
command that mends it; --fix runs these. It runs hatchd doctor, since hatchd
knows what it needs.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := daemonProgram()
			if err != nil {
				return err
			}
			args := []string{"doctor"}
			if cmd.Flags().Changed("output") {
				args = append(args, "-o", c.format.String())
			}
			if fix {
				args = append(args, "--fix")
			}
			return c.passThrough(cmd.Context(), program, args)
		},
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "run the command of each check that failed")
	return cmd
}

// daemonProgram is the hatchd beside this program, else the one in PATH.
func daemonProgram() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "hatchd")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	program, err := exec.LookPath("hatchd")
	if err != nil {
		return "", hint(errors.New("cannot examine this host: hatchd is neither beside hatch nor in PATH"),
			"run hatchd doctor on the server's host")
	}
	return program, nil
}
