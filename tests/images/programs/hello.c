// Says hello, shows its arguments and environment, and exits with 0.
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	printf("hello from C:");
	for (int i = 1; i < argc; i++)
		printf(" %s", argv[i]);
	const char *greeting = getenv("GREETING");
	if (greeting)
		printf(" (%s)", greeting);
	printf("\n");
	return 0;
}
