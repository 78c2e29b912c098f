package store

import "github.com/hatchvm/hatch/internal/access"

// inScope returns a condition, with its arguments, that selects the rows of a table
// with an owner_id that are in scope.
func inScope(scope access.Scope) (condition string, args []any) {
	switch owner, all := scope.Owner(); {
	case all:
		return "TRUE", nil
	case owner == "":
		return "FALSE", nil
	default:
		return "owner_id = ?", []any{owner}
	}
}
