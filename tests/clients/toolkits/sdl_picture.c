/* Shows a picture with SDL 1.2, until its standard input ends:
 *   sdl_picture FILE.bmp BITS
 * The mode is of the picture's size and of BITS per pixel. SDL_VIDEODRIVER=fbcon and SDL_FBDEV=/dev/fbN say where. */
#include <SDL/SDL.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int fail(const char *what)
{
	fprintf(stderr, "sdl_picture: %s: %s\n", what, SDL_GetError());
	return 1;
}

int main(int argc, char **argv)
{
	SDL_Surface *picture, *screen;
	char byte;

	if (argc != 3) {
		fprintf(stderr, "usage: sdl_picture FILE.bmp BITS\n");
		return 2;
	}
	if (SDL_Init(SDL_INIT_VIDEO | SDL_INIT_NOPARACHUTE) < 0)
		return fail("SDL_Init");
	atexit(SDL_Quit);
	picture = SDL_LoadBMP(argv[1]);
	if (!picture)
		return fail(argv[1]);
	SDL_ShowCursor(SDL_DISABLE);
	screen = SDL_SetVideoMode(picture->w, picture->h, atoi(argv[2]), SDL_SWSURFACE);
	if (!screen)
		return fail("SDL_SetVideoMode");
	if (SDL_BlitSurface(picture, NULL, screen, NULL) < 0 || SDL_Flip(screen) < 0)
		return fail("drawing");
	printf("%dx%d, %d bits, pitch %d\n", screen->w, screen->h, screen->format->BitsPerPixel, screen->pitch);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}
