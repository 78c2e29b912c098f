package access

// Scope says whose objects a call may see. The zero Scope sees nothing.
type Scope struct {
	ownerID  string
	everyone bool
	manages  bool // may change the images and templates of others that it sees
}

// Everyone is the scope of hatchd's own work: the objects of every user.
var Everyone = Scope{everyone: true}

// Owner is the scope of one user. An empty id sees nothing.
func Owner(ownerID string) Scope { return Scope{ownerID: ownerID} }

// Owner returns the one user whose objects the scope sees, "" for none.
// all reports that it sees the objects of every user; the id is "" then.
func (s Scope) Owner() (id string, all bool) { return s.ownerID, s.everyone }

// Manages reports whether the scope may change an object of a user that it sees.
func (s Scope) Manages(ownerID string) bool { return s.manages || s.Sees(ownerID) }

// Sees reports whether the scope includes the objects of a user.
func (s Scope) Sees(ownerID string) bool {
	return s.everyone || s.ownerID != "" && s.ownerID == ownerID
}
