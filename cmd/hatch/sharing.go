package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/client"
)

// sharingFlags say who sees an image or a template.
type sharingFlags struct {
	with            []string
	public, private bool
}

// shareCommand returns hatch NOUN share. update changes an object, and share is the
// visibility and the users that are given.
func shareCommand[T any](c nounCommands[T], update func(server *client.Client, cmd *cobra.Command, id, visibility string, with []string) (T, error)) *cobra.Command {
	f := &sharingFlags{}
	cmd := &cobra.Command{
		Use: "share " + c.noun, Short: "Say which users see and use the " + c.noun + " beside its owner", Args: oneArg(c.noun),
		Example:           "  hatch " + c.noun + " share mine --with alice --with bob\n  hatch " + c.noun + " share mine --private",
		ValidArgsFunction: c.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			visibility := "shared"
			switch {
			case f.public:
				visibility = "public"
			case f.private:
				visibility = "private"
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			found, err := c.find(cmd.Context(), server, args[0])
			if err == nil {
				found, err = update(server, cmd, c.name(found).id, visibility, f.with)
			}
			if err != nil {
				return fmt.Errorf("cannot share %s: %w", args[0], err)
			}
			return c.printLine(found, c.name(found).id)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.with, "with", nil, "`user` who sees it, in place of those before (repeatable)")
	flags.BoolVar(&f.public, "public", false, "all users see it; for admins")
	flags.BoolVar(&f.private, "private", false, "only its owner sees it")
	cmd.MarkFlagsMutuallyExclusive("with", "public", "private")
	cmd.MarkFlagsOneRequired("with", "public", "private")
	return cmd
}
