package access

// Scope says whose objects a call may see. The zero Scope sees nothing.
type Scope struct {
	account  string
	everyone bool
}

// Everyone is the scope of hatchd's own work: the objects of every account.
var Everyone = Scope{everyone: true}

// Owner is the scope of one account. An empty id sees nothing.
func Owner(account string) Scope { return Scope{account: account} }

// Owner returns the one account whose objects the scope sees, "" for none.
// all reports that it sees the objects of every account; the id is "" then.
func (s Scope) Owner() (id string, all bool) { return s.account, s.everyone }

// Sees reports whether the scope includes the objects of an account.
func (s Scope) Sees(ownerID string) bool {
	return s.everyone || s.account != "" && s.account == ownerID
}
