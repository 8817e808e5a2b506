// In Java, as Android's own: Kotlin sees setters as properties, and interfaces of one method as lambdas.
package android.graphics;

public final class ImageDecoder {
  public abstract static class Source {
    private Source() {}
  }

  public static class ImageInfo {}

  public interface OnHeaderDecodedListener {
    void onHeaderDecoded(ImageDecoder decoder, ImageInfo info, Source source);
  }

  public static final int ALLOCATOR_SOFTWARE = 1;

  public void setAllocator(int allocator) {}

  public int getAllocator() {
    return 0;
  }

  public static Bitmap decodeBitmap(Source source, OnHeaderDecodedListener listener) throws java.io.IOException {
    return null;
  }
}
