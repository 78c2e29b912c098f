package lifecycle

// Closing is closed once the service is being closed.
func (s *Service) Closing() <-chan struct{} { return s.runner.Closing() }
