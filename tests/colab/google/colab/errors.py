"Errors of Colab's package"


class Error(Exception): "Base of them"


class AuthorizationError(Error): "No authorization"


class RuntimeManagementError(Error): "The runtime's backend cannot be reached"
